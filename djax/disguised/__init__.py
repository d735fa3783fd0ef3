"""The disguised directory: its manifest, records, reader, stored dtypes and data card. docs/format.md."""
