"""Files that are written whole or not at all, files from outside that are read with care, and text for people."""
