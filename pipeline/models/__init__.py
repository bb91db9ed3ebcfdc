"""Networks as backbone + neck + head, model packages with a verified digest, and the engines that run them."""
