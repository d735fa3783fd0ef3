"""The command line ``python -m djax``: one file a group of verbs."""
