"""OpenAI's interface on this device: what ``pilotfish serve`` answers, drafted here and verified by the cloud."""
