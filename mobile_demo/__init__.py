"""A phone as the device: the TypeScript SDK, a page that shows it at work, and what starts the demo."""
