"""Report of the data doctor: lines of text, a JSON object, and a self-contained HTML page."""
