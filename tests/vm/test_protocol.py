"""jupyter_kernel_test's checks of the message protocol, on the real VM."""

from __future__ import annotations

import os
from pathlib import Path

import jupyter_kernel_test
import pytest

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="class", autouse=True)
def _in_notebooks(vm: str, notebooks: Path) -> object:
    before = Path.cwd()
    os.chdir(notebooks)
    yield
    os.chdir(before)


@pytest.mark.usefixtures("_in_notebooks")
class TestLimaKernel(jupyter_kernel_test.KernelTests):
    kernel_name = "lima"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('oops', file=sys.stderr)"
    completion_samples = ({"text": "zi", "matches": {"zip"}},)
    complete_code_samples = ("1", "print('hello')", "def f():\n  pass\n\n")
    incomplete_code_samples = ("print('''hello", "def f():\n  x*2")
    invalid_code_samples = ("import = 7q",)
    code_page_something = "zip?"
    code_generate_error = "raise ValueError('x')"
    code_execute_result = ({"code": "1+2", "result": "3"},)
    code_display_data = (
        {"code": "from IPython.display import HTML, display; display(HTML('<b>x</b>'))", "mime": "text/html"},
    )
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    def test_history(self) -> None:
        """Tail and search, as ipykernel has them."""
        for _ in range(2):
            self.execute_helper(code="1+2")
        for query in ({"hist_access_type": "tail", "n": 2}, {"hist_access_type": "search", "pattern": "1?2*", "n": 2}):
            self.flush_channels()
            message_id = self.kc.history(raw=True, output=False, **query)
            reply = self.get_non_kernel_info_reply(timeout=60)
            assert reply is not None
            jupyter_kernel_test.msgspec_v5.validate_message(reply, "history_reply", message_id)
            assert [entry[2] for entry in reply["content"]["history"]] == ["1+2", "1+2"]
