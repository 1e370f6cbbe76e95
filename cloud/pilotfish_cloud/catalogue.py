"""What a verifier serves, as devices ask for it before they open a generation; the same through every door."""

from __future__ import annotations

from pilotfish_cloud.draft_offers import DraftOffers
from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.stream import Stream
from pilotfish_core.messages import PROTOCOL_VERSION, Opened
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_openai.chat_template import ChatTemplate


class Catalogue:
    """The one model behind a gateway, its tokenizer and template, and the drafts on offer.

    ``http_url``, ``http_port``: where the drafts' files are, as the wire's DescribeResponse has it.
    """

    def __init__(
        self, gateway: Gateway, *, chat_template: ChatTemplate | None = None, offers: DraftOffers | None = None
    ) -> None:
        self._gateway = gateway
        self._template = chat_template
        self.offers = offers or DraftOffers()
        self.http_url, self.http_port = "", 0

    def describe(self) -> pb.DescribeResponse:
        """What is served here."""
        info = self._gateway.engine.info
        model = pb.Model(
            name=self._gateway.served_model_name,
            tokenizer_hash=self.tokenizer_hash,
            vocabulary_size=info.vocabulary_size,
            max_model_len=info.max_model_len,
            fingerprint=info.fingerprint,
            deterministic=info.deterministic,
            dtype=info.dtype,
            drafts=self.offers.names,
            draft_offers=[draft.message() for draft in self.offers.drafts],
        )
        return pb.DescribeResponse(
            protocol_version=PROTOCOL_VERSION, models=[model], http_url=self.http_url, http_port=self.http_port
        )

    def tokenizer(self, model: str) -> bytes:
        """tokenizer.json of ``model``, byte for byte. Raises UnknownModel."""
        self._gateway.check_model(model)
        return self._gateway.tokenizer.to_json()

    @property
    def tokenizer_hash(self) -> bytes:
        """The canonical one."""
        return bytes.fromhex(self._gateway.engine.info.tokenizer_hash)

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Of the model."""
        return tuple(self._gateway.tokenizer.eos_token_ids)

    def chat_template(self, model: str) -> pb.ChatTemplate:
        """The template that this verifier's own HTTP door uses; empty where there is none. Raises UnknownModel."""
        self._gateway.check_model(model)
        if self._template is None:
            return pb.ChatTemplate()
        return pb.ChatTemplate(source=self._template.source, special_tokens=self._template.special_tokens)

    def opened(self, stream: Stream, cached_tokens: int) -> Opened:
        """What a generation that was let in is told."""
        info = self._gateway.engine.info
        return Opened(
            model=self._gateway.served_model_name,
            fingerprint=info.fingerprint,
            max_model_len=info.max_model_len,
            max_draft_tokens=info.max_draft_tokens,
            max_unacknowledged=self._gateway.max_unacknowledged,
            cached_tokens=cached_tokens,
            other_fingerprint=stream.other_fingerprint,
            cloud_draft=info.cloud_draft,
            drafts=self.offers.names,
            routes=self._gateway.routes(stream.opening, stream.principal),
        )
