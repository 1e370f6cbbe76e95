"""The door of ``pilotfish serve``: one client behind it, one key in front of it, if any."""

from __future__ import annotations

import hmac
import logging

from pilotfish.api.answering import ClientAnswering
from pilotfish.client import AsyncClient
from pilotfish.served_model import ServedModel
from pilotfish_core.errors import PilotfishError, Unauthenticated, UnknownModel
from pilotfish_openai.answering import Question
from pilotfish_openai.chat_template import ChatTemplate
from pilotfish_openai.door import Door
from pilotfish_openai.errors import ErrorForms

log = logging.getLogger("pilotfish.serve")


class ClientDoor(Door[None]):
    """Answers with ``client``, which is prepared. ``served``: what its verifier said of the model; ``key``: what must
    be shown, None for nothing.
    """

    def __init__(self, client: AsyncClient, served: ServedModel, key: str | None) -> None:
        self.errors = ErrorForms(public)
        self.tokenizer = client.tokenizer
        self.model = served.name
        self.max_model_len = served.max_model_len
        self._client, self._served = client, served
        self._key = None if key is None else key.encode()

    @property
    def fingerprint(self) -> str:
        """What the verifier named when this door opened; each answer says what decided it."""
        return self._served.fingerprint

    def authenticate(self, authorization: str | None) -> None:
        """Raises Unauthenticated."""
        if self._key is None:
            return
        scheme, _, given = (authorization or "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._key)
        if scheme.lower() != "bearer" or not right:
            raise Unauthenticated("this endpoint asks for its own API key: Authorization: Bearer KEY (--serve-key)")

    def check_model(self, name: str) -> None:
        """Raises UnknownModel."""
        if name not in ("", self.model):
            raise UnknownModel(f"this endpoint does not serve model {name[:100]!r}; it serves {self.model!r}")

    async def chat_template(self) -> ChatTemplate | None:
        """The verifier's."""
        return await self._client.chat_template()

    def answering(self, caller: None, question: Question) -> ClientAnswering:
        """Raises InvalidParameter, PromptTooLong."""
        return ClientAnswering(self._client, self._served, question)


def public(error: Exception) -> PilotfishError:
    """What a caller may be told; a defect of ours goes to the log."""
    if isinstance(error, PilotfishError):
        log.info("%s: %s", error.kind, error.message)
        return error
    log.error("unexpected %s in a request", type(error).__name__, exc_info=error)
    return PilotfishError("this endpoint failed unexpectedly; its log has the reason")
