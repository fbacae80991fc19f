"""What core brings as callbacks: nothing here is in the loop, and each is built only where a setting asks for it."""
