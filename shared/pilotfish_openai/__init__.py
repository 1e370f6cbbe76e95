"""OpenAI's interface over HTTP, what its doors share: the verifier's own, and the one of ``pilotfish serve``.

``chat_template`` and ``conversation`` need jinja2 alone; the rest fastapi, which only those have who open a door.
"""
