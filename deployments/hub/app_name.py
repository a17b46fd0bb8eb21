"""How the applications of the hub's models are named. The name is all that a manager which restarts
knows of one whose process does not answer. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass


def hub_prefix(app_name: str) -> str:
    """How the applications of the hub's models begin, of the application that serves HTTP."""
    return f"{app_name}.hub."


@dataclass(frozen=True, slots=True)
class HubAppName:
    """`model` is what its deployment is called behind "model-". `build` is a digest of all that the
    process depends on, so that what has changed is seen by the name; `node_id` is Ray's; `started` is
    the moment in hexadecimal: handles of an application that has ended are of no use for the next.
    """

    model: str
    build: str
    node_id: str
    started: str

    @classmethod
    def parse(cls, text: str, app_name: str) -> HubAppName:
        """Of one that `text_for` made for the same `app_name`. Names of models may have dots."""
        return cls(*text.removeprefix(hub_prefix(app_name)).rsplit(".", 3))

    def text_for(self, app_name: str) -> str:
        return f"{hub_prefix(app_name)}{self.model}.{self.build}.{self.node_id}.{self.started}"
