"""Other ways to disguise images, under the Scheme contract, to be held against DisguisedNets. Not written to disk."""

import djax.schemes  # noqa: F401  its table holds these schemes: whoever comes first, it must be loaded before them
