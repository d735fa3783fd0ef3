"""Other ways to disguise images, under the Scheme contract, to be held against DisguisedNets. Not written to disk."""
