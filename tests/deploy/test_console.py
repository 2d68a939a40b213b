"""How a deployment is shown on a terminal."""

import io

from django.core.management.base import OutputWrapper

from deploy.console import Output


def test_a_step_is_shown_on_one_line_of_the_terminal_however_often_that_is_redrawn() -> None:
    shown = io.StringIO()
    output = Output(OutputWrapper(shown), as_json=False, no_color=False, force_color=True)
    output.begin("watch")
    for second in range(5):
        output.tell(f"{second} of 5 s")
    output.end("succeeded", "all is well")
    text = shown.getvalue()
    assert text.count("\n") - text.count("\x1b[1A") == 1, text  # lines down, less lines up again
