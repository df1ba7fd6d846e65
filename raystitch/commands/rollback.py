"""``raystitch serve --rollback``: an endpoint that runs serves the version of a model from before."""

import httpx

from raystitch.console import say
from raystitch.endpoint.tokens import read_tokens
from raystitch.errors import RunError, UserError

_SECONDS = 90.0


def roll_back(url: str, model: str) -> None:
    """Asks the endpoint; prints what it serves then.

    Raises:
        UserError: the endpoint refuses. RunError: it does not answer.
    """
    tokens = read_tokens()
    headers = {} if tokens is None else {"Authorization": f"Bearer {tokens.first}"}
    try:
        answer = httpx.put(
            f"{url}/v1/models/{model}/version",
            json={"hash": "previous"},
            headers=headers,
            timeout=_SECONDS,
            trust_env=False,
        )
        found = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise RunError(f"no endpoint answers at {url}: {error or type(error).__name__}") from error
    if answer.status_code != 200:
        raise UserError(f"{url}: {found.get('detail', answer.status_code)}")
    say(f"{model} is served as {found['hash']}, until its folder is fitted into again and reloaded")
