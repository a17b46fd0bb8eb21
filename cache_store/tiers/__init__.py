"""Places of objects, what guards each of them, and the stack of all of them."""
