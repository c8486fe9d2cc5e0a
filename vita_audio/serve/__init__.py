"""Server for live conversations: a page in the browser, and the interface of OpenAI's clients."""
