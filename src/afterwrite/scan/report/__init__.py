"""What a scan hands out: one document of plain values, and the faces of it that are files: Markdown and HTML."""
