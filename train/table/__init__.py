"""The table of results: ``python -m train.table`` runs its rows and writes the page from what the runs left.

``rows`` says what the rows are, ``runner`` runs what is missing, ``collect`` reads the run directories, ``summary``
derives what is shown, ``page`` and ``plot`` show it.
"""
