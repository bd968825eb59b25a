"""A started kernel and a blocking client of it, as the tests use them."""

from __future__ import annotations

from typing import Any

from jupyter_client import BlockingKernelClient, KernelManager

# A cell that goes on until it is interrupted. In short steps: where a signal comes just as time.sleep begins, Python
# notices it only when the sleep is over (1 of 10 where another thread wants the interpreter's lock).
ENDLESS = "import time\nwhile True: time.sleep(0.1)"


class CellError(Exception):
    """What a cell raised: its name and text."""


class Notebook:
    """A kernel that runs, and a client that is ready."""

    def __init__(self, manager: KernelManager) -> None:
        self.manager = manager
        self.client: BlockingKernelClient = manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    def run(self, code: str) -> str:
        """Run a cell and return what it printed.

        :raises CellError: when it raised.
        """
        return "".join(self.outputs(code).values()).strip()

    def outputs(self, code: str, timeout: float = 120) -> dict[str, str]:
        """Run a cell and return what it printed on "stdout" and "stderr".

        :raises CellError: when it raised.
        """
        printed: dict[str, str] = {}
        errors: list[str] = []

        def collect(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                printed[content["name"]] = printed.get(content["name"], "") + content["text"]
            elif message["msg_type"] == "error":
                errors.append(f"{content['ename']}: {content['evalue']}")

        reply = self.client.execute_interactive(code, timeout=timeout, output_hook=collect)
        if errors or reply["content"]["status"] != "ok":
            raise CellError(*errors, reply["content"])
        return printed

    def begin(self, code: str, announce: str = "print('[begins]', flush=True)") -> None:
        """Start a cell and return once its code runs: of what is interrupted before, ipykernel sends no reply.

        :param announce: a line that prints something; without one this returns when the cell is taken.
        """
        # Without stop_on_error: else ipykernel may abort the next request, as it does with what is queued behind one
        # that failed.
        request = self.client.execute(f"{announce}\n{code}" if announce else code, stop_on_error=False)
        awaited = ("stream" if announce else "execute_input", request)
        while (message := self.client.get_iopub_msg(timeout=60)) and awaited != (
            message["msg_type"],
            message["parent_header"].get("msg_id"),
        ):
            pass

    def interrupted(self) -> dict[str, Any]:
        """Start a cell that goes on, interrupt it, and return the reply's content."""
        self.begin(ENDLESS)
        self.manager.interrupt_kernel()
        return self.reply()

    def wait_until_subscribed(self) -> None:
        """Wait until the kernel greets a subscriber that came back.

        libzmq subscribes anew only when the socket's owner next looks at it; a client with an event loop does so at
        once, a blocking one here.
        """
        while self.client.get_iopub_msg(timeout=60)["msg_type"] != "iopub_welcome":
            pass

    def reply(self) -> dict[str, Any]:
        """Return the content of the next reply to a cell."""
        while (reply := self.client.get_shell_msg(timeout=60))["msg_type"] != "execute_reply":
            pass
        content: dict[str, Any] = reply["content"]
        return content


def control(client: BlockingKernelClient, kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """Ask a kernel something on its control channel, and return the answer's content."""
    message = client.session.msg(kind, content)
    client.control_channel.send(message)
    reply: dict[str, Any] = client.get_control_msg(timeout=60)["content"]
    return reply
