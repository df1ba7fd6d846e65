"""Files that exist whole or not at all, and the places they lie in: everything below this folder is a leaf."""
