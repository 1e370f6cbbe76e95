"""Messages to prompts: the target's own chat template, fetched once, and the tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pilotfish.daemon import in_daemon_thread
from pilotfish.transport import Transport
from pilotfish_core.errors import InvalidRequest, ModelLoadError
from pilotfish_core.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pilotfish_openai.chat_template import ChatTemplate

Message = Mapping[str, Any]
MAX_TEMPLATE_CHARS: Final = 512 * 1024  # the longest of today's models has some 20,000


class ChatPrompts:
    """The template of the model that ``transport``'s verifier serves; without a verifier (None), the one beside the
    device's own tokenizer or draft model.
    """

    def __init__(self, transport: Transport | None, model: str, folders: Sequence[object]) -> None:
        self._transport = transport
        self._model = model
        self._folders = [Path(folder).expanduser() for folder in folders if isinstance(folder, str | Path)]
        self._known = False
        self._template: ChatTemplate | None = None
        self._asking = asyncio.Lock()

    async def template(self) -> ChatTemplate | None:
        """None for a model that has none. Raises ModelLoadError for one that cannot be used, and what the verifier
        answers.
        """
        async with self._asking:
            if not self._known:
                self._template = await self._of_verifier() if self._transport is not None else self._of_folder()
                self._known = True
        return self._template

    async def prompt(
        self,
        messages: Sequence[Message],
        tokenizer: Tokenizer,
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """Token ids. ``variables``: further ones for the template, such as ``enable_thinking``.

        Raises InvalidRequest, naming the message that is wrong, and what ``template`` does.
        """
        from pilotfish_openai.conversation import plain_messages  # jinja2 takes a while to import

        template = await self.template()
        if template is None:
            raise InvalidRequest(
                "this model has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); "
                "generate() takes a prompt as it is"
            )

        def rendered() -> tuple[int, ...]:
            plain = plain_messages(messages, template)
            text = template.render(plain, add_generation_prompt=add_generation_prompt, extra=variables)
            return tuple(tokenizer.encode(text, add_special_tokens=False))

        return await in_daemon_thread(rendered, "pilotfish-template")  # a template may take for ever

    async def _of_verifier(self) -> ChatTemplate | None:
        from pilotfish_openai.chat_template import ChatTemplate

        if self._transport is None:
            return None
        sent = await self._transport.fetch_chat_template(self._model)
        if not sent.source:
            return None
        if len(sent.source) > MAX_TEMPLATE_CHARS:
            raise ModelLoadError(f"the verifier's chat template is over {MAX_TEMPLATE_CHARS} characters")
        return ChatTemplate(sent.source, sent.special_tokens, name="the verifier's chat template")

    def _of_folder(self) -> ChatTemplate | None:
        from pilotfish_openai.chat_template import ChatTemplate

        for folder in self._folders:
            template = ChatTemplate.load(folder if folder.is_dir() else folder.parent)
            if template is not None:
                return template
        return None
