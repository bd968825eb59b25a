"""One watch for all panels of the same VM in this process."""

from __future__ import annotations

import threading
from collections.abc import Collection

from ..magics.backend import LimaError
from .news import News
from .pending import Message
from .source import Link, Source, Tell

# Seconds for the first news: a panel that knows its VM from the start is of more use in the next line of a cell.
FIRST_NEWS = 5.0


class Member:
    """One panel's part in a watch."""

    def __init__(self, feed: Feed, tell: Tell) -> None:
        self.tell = tell
        self.names: Collection[str] | None = ()
        self._feed = feed

    def show(self, names: Collection[str] | None) -> None:
        """Say whose usage this panel shows now, None for all."""
        self.names = names
        self._feed.show()

    def follow(self, name: str | None) -> None:
        """Have a VM's log told from now on; None to end that."""
        self._feed.follow(name)

    def say(self, message: Message) -> None:
        """Say what concerns this panel alone: act, cancel."""
        self._feed.say(message)

    def leave(self) -> None:
        """Hear nothing more; may be called twice."""
        self._feed.leave(self)


class Feed:
    """What is known of one VM, or of all, and who wants to hear of it."""

    def __init__(self, feeds: Feeds, name: str) -> None:
        self.has_news = threading.Event()
        self._feeds = feeds
        self._name = name
        self._lock = threading.RLock()
        self._members: list[Member] = []
        self._link: Link | None = None
        self._news = News()
        self._shown: Collection[str] | None = ()
        self._followed: str | None = None

    def open(self, source: Source) -> None:
        """Begin to watch."""
        self._link = source.open(self._name, self._hear)

    def join(self, tell: Tell) -> Member:
        """Tell somebody more what is known, and all that comes."""
        member = Member(self, tell)
        with self._lock:
            self._members.append(member)
            if self.has_news.is_set():
                tell(self._news.snapshot())
            if self._news.lost is not None:
                tell(self._news.lost)
        return member

    def _hear(self, message: Message) -> None:
        """Take notice of a message, in the source's thread."""
        with self._lock:
            was_lost = self._news.lost is not None
            self._news.note(message)
            if message["type"] == "snapshot" and was_lost:
                # Whoever tells us the news now has not heard yet what we want.
                self.say({"type": "visible", "names": self._shown})
                self.say({"type": "follow", "name": self._followed})
            for member in tuple(self._members):
                member.tell(message)
        if message["type"] == "snapshot" or message.get("final"):
            self.has_news.set()

    def check(self) -> None:
        """See that there is, or may be, something to show.

        :raises LimaError: when nothing will ever come.
        """
        lost = self._news.lost
        if lost is not None and lost["final"]:
            raise LimaError(lost["message"], lost["hint"])

    def show(self) -> None:
        """Have usage taken of what anybody shows."""
        with self._lock:
            wanted: set[str] | None = set()
            for member in self._members:
                wanted = None if wanted is None or member.names is None else wanted | set(member.names)
            names = None if wanted is None else sorted(wanted)
            if names != self._shown:
                self._shown = names
                self.say({"type": "visible", "names": names})

    def follow(self, name: str | None) -> None:
        """Have a log told; the last who asked has it."""
        with self._lock:
            self._followed = name
            self.say({"type": "follow", "name": name})

    def say(self, message: Message) -> None:
        """Say something to whoever tells us the news."""
        if self._link is not None:
            self._link.say(message)

    def leave(self, member: Member) -> None:
        """Tell somebody nothing more; with the last the watch ends."""
        with self._feeds.lock, self._lock:
            if member not in self._members:
                return
            self._members.remove(member)
            if self._members:
                self.show()
            else:
                self._feeds.forget(self._name)
                self.close()

    def close(self) -> None:
        """Watch no longer."""
        if self._link is not None:
            self._link.close()


class Feeds:
    """The watches of this process."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.lock = threading.RLock()
        self._feeds: dict[str, Feed] = {}

    def join(self, name: str, tell: Tell) -> Member:
        """Have news of a VM told, or of all when the name is empty.

        :raises LimaError: when they cannot be had.
        """
        with self.lock:
            feed = self._feeds.get(name)
            if feed is None:
                feed = Feed(self, name)
                feed.open(self.source)
                self._feeds[name] = feed
            member = feed.join(tell)
        try:
            feed.has_news.wait(FIRST_NEWS)
            feed.check()
        except BaseException:
            member.leave()
            raise
        return member

    def forget(self, name: str) -> None:
        """Begin anew with whoever comes next."""
        self._feeds.pop(name, None)
