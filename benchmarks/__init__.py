"""Questions about speed, each a module that runs alone and prints ratios to a baseline of the same run. Not tests."""
