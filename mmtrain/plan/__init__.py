"""What a layout costs before it is rented."""
