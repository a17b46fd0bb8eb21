"""How fast a server of OpenAI's API is, seen from a client: what is asked, what is measured, what it means."""
