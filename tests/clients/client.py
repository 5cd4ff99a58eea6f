"""A client of Odoshi in another language, written from the interface's description alone.

usage: client.py URL    (an admin's token is in ODOSHI_TOKEN)

It enrolls three agents, submits an action for them, and follows it by server-sent events while it is each of the agents
in turn: one on a WebSocket, two that check in over plain HTTP. Then it reads what came of it as pages, NDJSON and CSV.
It ends with 0 when everything was as described.
"""

import asyncio
import csv
import io
import json
import os
import sys
import uuid

import aiohttp

JSON = ["application/json", "application/problem+json"]
COLUMNS = ["agent", "status", "attempts", "runs", "due_at", "sent_at", "started_at", "finished_at", "results", "error"]
NOW = "2026-01-01T00:00:00.000Z"


class Problem(Exception):
    """An answer that says what went wrong."""


class Client:
    """Calls of one token."""

    def __init__(self, http, url, token):
        self.http, self.url, self.headers = http, url, {"Authorization": f"Bearer {token}"}

    async def call(self, method, path, body=None, expect=200, **headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.request(method, self.url + path, json=body, headers={**self.headers, **named}) as answer:
            text = await answer.text()
            if answer.status != expect:
                raise Problem(f"{method} {path}: {answer.status} instead of {expect}: {text}")
            if answer.status >= 400:
                assert answer.content_type == "application/problem+json", answer.content_type
                assert json.loads(text)["type"].startswith("urn:"), text
            return json.loads(text) if answer.content_type in JSON else text

    async def events(self, path):
        """Server-sent events as (name, data)."""
        async with self.http.get(self.url + path, headers=self.headers) as answer:
            assert answer.status == 200 and answer.content_type == "text/event-stream", answer
            name = None
            async for line in answer.content:
                line = line.decode().rstrip("\n")
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, json.loads(line.removeprefix("data: "))

    async def pages(self, path, key, limit):
        items, after = [], ""
        while True:
            page = await self.call("GET", f"{path}?limit={limit}{after}")
            assert len(page[key]) <= limit, page
            items += page[key]
            if "next" not in page:
                return items
            after = f"&after={page['next']}"


def result(command, status="succeeded"):
    ok = status == "succeeded"
    operation = {"module": command["operations"][0]["module"], "ok": ok, "output": {"said": command["name"]}}
    if not ok:
        operation["error"] = "it was told to"
    return {"action": command["action"], "run": command["run"], "status": status, "results": [operation],
            "started_at": NOW, "finished_at": NOW}


def ref(command):
    return {"action": command["action"], "run": command["run"]}


async def stream_agent(http, url, token, name):
    """Takes one command over a WebSocket and says that it went well."""
    headers = {"Authorization": f"Bearer {token}"}
    async with http.ws_connect(url + "/v1/agent/stream", headers=headers, max_msg_size=4 << 20) as socket:
        async def until(kind):
            while True:
                frame = await socket.receive_json(timeout=240)
                if frame["type"] == kind:
                    return frame

        await socket.send_json({"type": "hello", "version": "py", "facts": {"os": "python"}, "capacity": 4, "running": []})
        assert (await until("welcome"))["agent"] == name
        [command] = (await until("commands"))["commands"]
        assert command["attempt"] == 1 and command["timeout_ms"] == 60_000, command
        await socket.send_json({"type": "of a later version"})
        await socket.send_json({"type": "received", "commands": [ref(command)]})
        await socket.send_json({"type": "results", "results": [result(command)]})
        stored = await until("stored")
        assert stored["commands"] == [ref(command)] and not stored["rejected"], stored
        # The same again is stored still, and what is nobody's is rejected.
        nobodys = {**result(command), "action": str(uuid.uuid4())}
        await socket.send_json({"type": "results", "results": [result(command), nobodys]})
        stored = await until("stored")
        assert stored["commands"] == [ref(command)], stored
        assert [rejected["action"] for rejected in stored["rejected"]] == [nobodys["action"]], stored


async def check_in_agent(agent, status):
    """Takes one command over plain HTTP and says how it went."""
    due = await agent.call("GET", "/v1/agent/commands?wait=30s&limit=10")
    [command] = due["commands"]
    again = await agent.call("GET", "/v1/agent/commands")
    assert again["commands"] == due["commands"], "asking changes nothing"
    await agent.call("POST", "/v1/agent/received", {"commands": [ref(command)]})
    assert (await agent.call("GET", "/v1/agent/commands"))["commands"] == []
    answer = await agent.call("POST", "/v1/agent/results", {"results": [result(command, status)]})
    assert answer["commands"] == [ref(command)] and answer["rejected"] == [], answer


async def main(url, token):
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as http:
        admin = Client(http, url, token)
        mark = uuid.uuid4().hex[:8]
        enroll = await admin.call("POST", "/v1/tokens", {"role": "enroll", "name": "py"}, expect=201)
        enrolling = Client(http, url, enroll["token"])
        tokens = {}
        for kind in ["stream", "good", "bad"]:
            name = f"py-{mark}-{kind}"
            body = {"name": name, "labels": {"mark": mark, "kind": kind}, "facts": {"os": "python"}, "version": "1"}
            tokens[kind] = (await enrolling.call("POST", "/v1/agent/enroll", body, expect=201))["token"]
            await enrolling.call("POST", "/v1/agent/enroll", body, expect=409)
        await enrolling.call("GET", "/v1/actions", expect=403)
        await Client(http, url, "wrong").call("GET", "/v1/actions", expect=401)

        target = f"labels.mark = '{mark}' AND facts.os = 'python'"
        preview = await admin.call("POST", "/v1/targets/preview", {"target": target})
        assert preview["count"] == 3 and len(preview["sample"]) == 3, preview
        await admin.call("POST", "/v1/targets/preview", {"target": "name = 'x'; DROP TABLE agents"}, expect=422)

        document = {"name": "from python", "target": target, "timeout": "60s", "expires_after": "1h",
                    "operations": [{"module": "ping", "parameters": {"n": 1}}]}
        accepted = await admin.call("POST", "/v1/actions", document, expect=202, Idempotency_Key=mark)
        again = await admin.call("POST", "/v1/actions", document, expect=202, Idempotency_Key=mark)
        assert again["id"] == accepted["id"], again
        path = f"/v1/actions/{accepted['id']}"

        agents = asyncio.gather(
            stream_agent(http, url, tokens["stream"], f"py-{mark}-stream"),
            check_in_agent(Client(http, url, tokens["good"]), "succeeded"),
            check_in_agent(Client(http, url, tokens["bad"]), "failed"),
        )
        events = [event async for event in admin.events(path + "/events")]
        await agents
        assert [name for name, _ in events[:-1]] == ["progress"] * (len(events) - 1), events
        name, last = events[-1]
        assert name == "end" and last["status"] == "completed" and last["counts"]["resolved"], events
        assert (last["counts"]["total"], last["counts"]["succeeded"], last["counts"]["failed"]) == (3, 2, 1), last

        view = await admin.call("GET", path)
        assert view["counts"] == last["counts"] and view["action"]["target"] == target, view
        commands = await admin.pages(path + "/commands", "commands", limit=1)
        assert [command["agent"] for command in commands] == [f"py-{mark}-{kind}" for kind in ["bad", "good", "stream"]]
        assert [command["status"] for command in commands] == ["failed", "succeeded", "succeeded"]
        assert commands[1]["results"][0]["output"] == {"said": "from python"}, commands
        lines = await admin.call("GET", path + "/commands", Accept="application/x-ndjson")
        assert [json.loads(line) for line in lines.splitlines()] == commands
        rows = list(csv.reader(io.StringIO(await admin.call("GET", path + "/commands", Accept="text/csv"))))
        assert rows[0] == COLUMNS and len(rows) == 4, rows
        for row, command in zip(rows[1:], commands):
            assert row[:4] == [command["agent"], command["status"], str(command["attempts"]), str(command["runs"])], row
            assert json.loads(row[8]) == command["results"], row
        [failed] = (await admin.call("GET", path + "/commands?status=failed"))["commands"]
        assert failed["agent"].endswith("-bad"), failed

        retried = await admin.call("POST", path + "/retry?status=failed", expect=202)
        await check_in_agent(Client(http, url, tokens["bad"]), "succeeded")
        events = [event async for event in admin.events(f"/v1/actions/{retried['id']}/events")]
        assert events[-1][1]["counts"]["succeeded"] == 1, events
        assert (await admin.call("POST", path + "/cancel"))["status"] == "completed", "it is over"
        newest = await admin.pages("/v1/actions", "actions", limit=1)
        assert [action["id"] for action in newest[:2]] == [retried["id"], accepted["id"]], newest


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1].rstrip("/"), os.environ["ODOSHI_TOKEN"]))
    print("everything was as described")
