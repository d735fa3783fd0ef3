"""What several attacks compute."""
