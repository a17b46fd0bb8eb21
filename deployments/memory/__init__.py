"""Memory given back before anything is killed for it: the scheduler, its policy, and what replicas answer."""
