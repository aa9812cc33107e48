"""The requests that are under way, and who has sent them."""

from collections import OrderedDict

from .bans import Requester
from .crowds import key_of
from .networks import Address


class UnderWay:
    """Who has sent the requests that are under way, until their answer is counted.

    Ids are unique, unless others than this package ask. Then nobody is banned for what another has done: of a request
    whose id another client uses as well, nothing is known.

    :param most: so many are known. An agent that is down is not told of an end: the oldest go.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._clients: OrderedDict[str, Requester | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clients)

    def begin(self, correlation_id: str, client: Requester) -> None:
        same = self._clients.setdefault(correlation_id, client) == client
        self._clients[correlation_id] = client if same else None
        if len(self._clients) > self._most:
            self._clients.popitem(last=False)

    def of(self, correlation_id: str) -> Requester | None:
        """Whose request it is, unless it is counted, or forgotten."""
        return self._clients.get(correlation_id)

    def counted(self, correlation_id: str) -> None:
        """Its end does not count any more, also where its strike is cancelled on its way.

        Redis may have counted that already. A strike that is lost is better than one that counts twice: nobody is
        banned too early.
        """
        # It stays here: whoever begins with the same id before it ends is not to be blamed for it.
        if correlation_id in self._clients:
            self._clients[correlation_id] = None

    def end(self, correlation_id: str) -> Requester | None:
        """Whose request it was, as :meth:`of`. Nothing of it is kept."""
        return self._clients.pop(correlation_id, None)

    def forget(self, address: Address) -> None:
        """What this client has under way does not count any more."""
        key = key_of(address)
        for correlation_id, client in [*self._clients.items()]:
            if client is not None and key_of(client.address) == key:
                self.counted(correlation_id)
