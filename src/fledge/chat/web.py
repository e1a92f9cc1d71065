"""`fledge chat --web`: a page on this machine alone, at 127.0.0.1, with all that the terminal can do."""

import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

from .models import load_speakers
from .sampling import Sampling


HOST = "127.0.0.1"


def serve(
    folder: Path,
    sampling: Sampling,
    *,
    system: str | None = None,
    compare: bool = False,
    device: str | None = None,
    port: int | None = None,
) -> int:
    """Serve the page until Ctrl-C or SIGTERM, and return the exit code. What it writes is gone with it.

    Args:
        folder, compare, device: as `load_speakers` takes them.
        sampling, system: where the page's settings begin.
        port: the first free one from 7860 on if None.

    Raises:
        ValueError: gradio is not installed, the port is taken, or there is no model to talk to.
    """
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.default_int_handler)
    with TemporaryDirectory(prefix="fledge-chat-") as own:
        # gradio reads these when it is imported.
        os.environ |= {"GRADIO_TEMP_DIR": own, "GRADIO_ANALYTICS_ENABLED": "False"}
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise ValueError("--web: gradio is not installed; run: pip install 'fledge-lm[web]'") from error
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from .page import CSS, THEME, Page

        page = Page(folder, load_speakers(folder, compare, device), sampling, system, Path(own)).blocks
        try:
            _, url, _ = page.launch(
                server_name=HOST,
                server_port=port,
                share=False,
                ssr_mode=False,
                mcp_server=False,
                run_history=False,
                footer_links=[],
                max_file_size="10mb",
                quiet=True,
                prevent_thread_lock=True,
                theme=THEME,
                css=CSS,
                # A page of another site, whose name was made to lead here, is not answered.
                app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])]},
            )
        except OSError as error:
            raise ValueError(f"--port {port or 'left out'}: no free port ({error}); give another") from None
        try:
            print(f"{url} (Ctrl-C ends it)", file=sys.stderr, flush=True)
            Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            page.close(verbose=False)
    return 0
