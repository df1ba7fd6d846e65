"""Statistics, figures and the HTML page; reads files only."""
