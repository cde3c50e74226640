"""What every process of ours needs, of either service. Imports nothing else of them."""
