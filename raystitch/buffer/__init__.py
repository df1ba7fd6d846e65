"""The Arrow-backed augmented buffer: schema, writer, reader, export."""
