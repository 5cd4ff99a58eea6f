"""A mail server for the tests: aiosmtpd, with a policy by recipient and one for all, and a record of what came.

    server.py PORT FOLDER

FOLDER/policy, if it is there, is the answer to every recipient ("451 not now"). The local part of a recipient may ask
for one as well: `refused` (550, always), `later` (451 to the first mail of each recipient, after its content).
Accepted and postponed mails are appended to FOLDER/mails as lines of JSON.
"""

import asyncio
import email
import email.header
import json
import sys
from pathlib import Path

from aiosmtpd.smtp import SMTP

port, folder = int(sys.argv[1]), Path(sys.argv[2])


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        policy = folder / "policy"
        if policy.exists():
            return policy.read_text().strip()
        if address.startswith("refused"):
            return "550 5.1.1 nobody of this name"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        to = envelope.rcpt_tos[0]
        mail = email.message_from_bytes(envelope.content)
        subject = str(email.header.make_header(email.header.decode_header(mail["Subject"])))
        text = mail.get_payload(decode=True).decode("utf-8")
        seen = folder / f"seen-{to}"
        accepted = not to.startswith("later") or seen.exists()
        seen.touch()
        line = {"to": to, "id": mail["Message-ID"], "subject": subject, "text": text, "accepted": accepted}
        with open(folder / "mails", "a") as mails:
            mails.write(json.dumps({**line, "headers": mail.keys(), "from": envelope.mail_from}) + "\n")
        return "250 OK" if accepted else "451 come back"


async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Handler(), hostname="mail.test"), "127.0.0.1", port)
    await server.serve_forever()


asyncio.run(main())
