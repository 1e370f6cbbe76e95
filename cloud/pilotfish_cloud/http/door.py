"""The verifier's own door for OpenAI's clients: the gateway behind it, and nobody else's model."""

from __future__ import annotations

from collections.abc import Callable

from pilotfish_cloud.edge import public
from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.http.answering import EngineAnswering
from pilotfish_cloud.principal import Principal
from pilotfish_openai.answering import Question
from pilotfish_openai.chat_template import ChatTemplate
from pilotfish_openai.door import Door
from pilotfish_openai.errors import ErrorForms

Authenticate = Callable[[str | None], Principal]


class GatewayDoor(Door[Principal]):
    """Answers with the gateway's engine."""

    def __init__(self, gateway: Gateway, authenticate: Authenticate, template: ChatTemplate | None) -> None:
        self.errors = ErrorForms(public)
        self.tokenizer = gateway.tokenizer
        self.model = gateway.served_model_name
        self.max_model_len = gateway.engine.info.max_model_len
        self._gateway, self._authenticate, self._template = gateway, authenticate, template

    @property
    def fingerprint(self) -> str:
        """The engine's."""
        return self._gateway.engine.info.fingerprint

    def authenticate(self, authorization: str | None) -> Principal:
        """As the server was told to."""
        return self._authenticate(authorization)

    def check_model(self, name: str) -> None:
        """Raises UnknownModel."""
        self._gateway.check_model(name)

    async def chat_template(self) -> ChatTemplate | None:
        """That of the model's folder."""
        return self._template

    def answering(self, caller: Principal, question: Question) -> EngineAnswering:
        """Raises InvalidParameter, PromptTooLong."""
        return EngineAnswering(self._gateway, caller, question)
