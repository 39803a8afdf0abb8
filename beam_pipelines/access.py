"""Who may ask a server: the file of keys and the roles of who has none, by the flags of ``serve`` and ``collect``."""

from __future__ import annotations

import argparse
import secrets
from dataclasses import dataclass
from pathlib import Path

from beam_pipelines.errors import UserError
from beam_pipelines.options import Config
from serving.api_keys import ROLES, KeyFile, KeyFileError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Access:
    """How a server decides.

    Attributes:
      keys: the file, which may come later.
      anonymous: roles of a request without a key; until_keys: while there is no such file, and no longer.
      mask: the secret of masked ids.
      is_open: everybody on this machine may do everything.
    """

    keys: Path
    anonymous: tuple[str, ...]
    until_keys: bool
    mask: str
    is_open: bool


def access_of(args: argparse.Namespace, config: Config, everything: tuple[str, ...], anonymous: str | None,
              role: str, flag: str) -> Access:
    """The access that ``--host`` and ``--keys`` ask for.

    Args:
      everything: the roles of this machine while there are no keys.
      anonymous: roles of a request without a key, with commas, where the flags name them.
      role, flag: what a client of it needs, and the flag that does without keys.

    Raises:
      UserError: for keys that cannot be read, roles that there are not, and an address that others reach without either.
    """
    path = Path(args.keys or config.workspace.keys).absolute()
    there, mask = path.exists(), ""
    if args.keys or there:
        try:
            mask = KeyFile.read(path).mask
        except (OSError, KeyFileError) as error:
            raise UserError(f"--keys {path}: {error}") from error
    if anonymous is not None:
        roles = tuple(role for role in anonymous.split(",") if role)
        unknown = [role for role in roles if role not in ROLES]
        if unknown:
            raise UserError(f"--anonymous: no role {unknown[0]!r}; roles are {', '.join(ROLES)}")
    else:
        roles = everything if not there and args.host in LOOPBACK else ()
    if not there and not roles:
        raise UserError(f"--host {args.host} is open to others, and there are no keys: 'beamrec keys add --role {role}' makes "
                        f"one; {flag} does without")
    return Access(path, roles, anonymous is None, mask or secrets.token_hex(32), not there and roles == everything)
