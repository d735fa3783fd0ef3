"""The owner's machine: everything that holds the key while a data set leaves it, comes back, or is asked about.

``plan`` checks what is asked, ``shards`` disguise it in the processes of ``pool``, ``export`` writes the directory,
``restore`` goes back, ``query`` asks a trained network. The rented machine loads none of this.
"""
