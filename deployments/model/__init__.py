"""One model: its replica as Serve runs it, and how it is called from anywhere."""
