"""The browser library: its gate, what it refuses to believe, its calls, and the extension that is built on it."""
