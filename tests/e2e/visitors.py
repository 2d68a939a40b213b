"""Visitors inside a cluster, as strict as some proxies are: each keeps its connection until it is told to close it,
never looks whether it is still there, and sends nothing twice.

It needs Python's own library only, as it runs in the app's image.

    python visitors.py HOST ADDRESS...

Each visitor alternates between pages and a POST that nobody may repeat. Every request is one line on standard output:
its time, address, method, path, outcome (a status or an error), and the release and the revision that gave the answer,
`-` if none did.
"""

import http.client
import re
import sys
import threading
import time

RATE = 33.0  # requests a second, of all visitors together
VISITORS = 4  # at each address
TURNS = (("GET", "/"), ("POST", "/accounts/logout/"), ("GET", "/accounts/login/"))


class Visitor(threading.Thread):
    """One client with one connection."""

    def __init__(self, host: str, address: str, due: float, pause: float) -> None:
        super().__init__(daemon=True)
        self.host, self.address, self.due, self.pause = host, address, due, pause
        self.link: http.client.HTTPConnection | None = None
        self.form = {"Content-Type": "application/x-www-form-urlencoded"}
        self.token = ""

    def run(self) -> None:
        turn = 0
        while True:
            time.sleep(max(0.0, self.due - time.monotonic()))
            self.due = max(self.due + self.pause, time.monotonic() - 1)
            method, path = TURNS[turn % len(TURNS)]
            if method == "POST" and not self.token:
                method, path = "GET", "/accounts/login/"
            turn += 1
            at, outcome, source = time.time(), "", "- -"
            try:
                outcome, source = self.request(method, path)
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
                self.close()
            sys.stdout.write(f"{at:.3f} {self.address} {method} {path} {outcome} {source}\n")  # whole, among threads
            sys.stdout.flush()

    def request(self, method: str, path: str) -> tuple[str, str]:
        """Sends one request. Returns the status, and the release and the revision that answered, as far as known."""
        if not self.link:
            name, _, port = self.address.rpartition(":")
            self.link = http.client.HTTPConnection(name, int(port), timeout=30)
        # As an ingress controller sends them.
        headers = {"Host": self.host, "X-Forwarded-Proto": "https", "X-Request-Id": f"visitor-{id(self)}"}
        headers["Referer"] = f"https://{self.host}/accounts/login/"
        body = f"csrfmiddlewaretoken={self.token}" if method == "POST" else None
        self.link.request(method, path, body, headers | (self.form if method == "POST" else {}))
        answer = self.link.getresponse()
        text = answer.read().decode(errors="replace")
        if path == "/accounts/login/" and answer.status == 200:
            found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', text)
            cookie = re.search(r"((?:__Host-)?csrf(?:token)?=[^;]+)", answer.headers.get("Set-Cookie", ""))
            if found and cookie:
                self.token, self.form["Cookie"] = found[1], cookie[1]
        if answer.will_close:
            self.close()
        return str(answer.status), " ".join(
            answer.headers.get(f"App-{name}") or "-" for name in ("Version", "Revision")
        )

    def close(self) -> None:
        if self.link:
            self.link.close()
        self.link = None


def main() -> None:
    host, *addresses = sys.argv[1:]
    count = VISITORS * len(addresses)
    began = time.monotonic()
    everybody = [
        Visitor(host, addresses[number % len(addresses)], began + number / RATE, count / RATE)
        for number in range(count)
    ]
    for visitor in everybody:
        visitor.start()
    for visitor in everybody:
        visitor.join()


if __name__ == "__main__":
    main()
