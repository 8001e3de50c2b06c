"""Feeds a topic with access-log lines in transactions, some of them aborted, until a file says to stop.

Driven by tests/src/soak_kafka/feeder.rs. Partition N gets the lines that name themselves `?file=N&turn=0&seq=S`,
S from 0 without gaps among what is committed: the numbers of an aborted transaction come again in the next one, so
that a reader who takes what was aborted has them twice. The broker may die at any time: a commit whose outcome is
not known is asked for again, and where that is not possible a new producer with the same transactional id (whose
start ends what was open) reads in the topic how far the old one came.

Ends when STOP exists, with the lines per partition as JSON on standard output.
"""

import argparse
import json
import os
import random
import sys
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, KafkaError, Producer, TopicPartition

# Lines of one transaction and partition.
LINES_MAX = 300
# One transaction in so many is aborted, after all of it was sent; the second is the first of them.
ABORT_ONE_IN = 4
# A call of librdkafka that waits for the broker; it is made again as long as it may be.
CALL_S = 5.0


def status_of(seq):
    """As generator.rs has it."""
    at = seq % 100
    if at == 41:
        return 503
    if at in (7, 27, 47, 67, 87):
        return 404
    if at in (3, 13, 23):
        return 304
    return 201 if at == 60 else 200


def line(time_text, file, seq, has_malformed):
    if has_malformed and seq % 500 == 77:
        return f"panic: no access log: ?file={file}&turn=0&seq={seq} in /srv/app.c"
    return (f'10.1.{file}.{seq % 250} - - [{time_text}] "GET /shop/cart?file={file}&turn=0&seq={seq} HTTP/1.1" '
            f'{status_of(seq)} {seq % 60000} "a.eu/shop" "curl/8.5.0"')


class Feed:
    def __init__(self, args):
        self.args = args
        self.random = random.Random(args.seed)
        self.next = [0] * args.partitions
        self.transactions = self.aborted = 0
        self.producer = None

    def open(self):
        """A producer that may write: what an older one left open is ended, and what it committed is known."""
        self.producer = Producer({
            "bootstrap.servers": self.args.bootstrap, "transactional.id": self.args.transactional_id,
            "transaction.timeout.ms": 60_000, "linger.ms": 5, "log_level": 0,
        })
        self.insist(self.producer.init_transactions)
        self.next = self.committed()

    def insist(self, call):
        """Calls until it is done; raises what trying again does not mend."""
        while True:
            try:
                return call(CALL_S)
            except KafkaException as failed:
                if not failed.args[0].retriable() or failed.args[0].txn_requires_abort():
                    raise
                print(f"feed: {time.time():.1f} {call.__name__}: {failed.args[0]}", file=sys.stderr, flush=True)

    def committed(self):
        reader = Consumer({"bootstrap.servers": self.args.bootstrap, "group.id": f"feed-{os.getpid()}",
                           "isolation.level": "read_committed", "enable.partition.eof": True,
                           "enable.auto.commit": False, "log_level": 0})
        parts = range(self.args.partitions)
        reader.assign([TopicPartition(self.args.topic, part, OFFSET_BEGINNING) for part in parts])
        counts, left = [0] * self.args.partitions, set(parts)
        while left:
            for message in reader.consume(10_000, timeout=0.2):
                if message.error() is None:
                    counts[message.partition()] += 1
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition())
        reader.close()
        return counts

    def transaction(self):
        time_text = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime())
        self.producer.begin_transaction()
        counts = [self.random.randint(1, LINES_MAX) for _ in self.next]
        for part, count in enumerate(counts):
            for seq in range(self.next[part], self.next[part] + count):
                value = line(time_text, part, seq, self.args.malformed)
                self.producer.produce(self.args.topic, value=value.encode(), key=f"k{part}", partition=part)
        if (self.transactions + self.aborted) % ABORT_ONE_IN == 1:
            while self.producer.flush(CALL_S):
                pass
            self.insist(self.producer.abort_transaction)
            self.aborted += 1
            return sum(counts)
        self.insist(self.producer.commit_transaction)
        self.next = [seq + count for seq, count in zip(self.next, counts)]
        self.transactions += 1
        return sum(counts)

    def run(self):
        started, sent = time.monotonic(), 0
        self.open()
        while not os.path.exists(self.args.stop):
            try:
                sent += self.transaction()
            except KafkaException as failed:
                error = failed.args[0]
                print(f"feed: {time.time():.1f} {error}", file=sys.stderr, flush=True)
                if error.txn_requires_abort() and not error.fatal():
                    try:
                        self.insist(self.producer.abort_transaction)
                        continue
                    except KafkaException as again:
                        print(f"feed: {time.time():.1f} {again}", file=sys.stderr, flush=True)
                self.open()
            # No debt is caught up with: the broker's absence is not followed by a flood.
            pause = sent / self.args.lines_per_s - (time.monotonic() - started)
            if pause > 0:
                time.sleep(min(pause, 0.5))
            else:
                started -= pause


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("bootstrap", "topic", "transactional-id", "stop"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("partitions", "seed", "lines-per-s"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--malformed", action="store_true", help="one line in 500 is no access-log line")
    feed = Feed(parser.parse_args())
    feed.run()
    print(json.dumps({"written": feed.next, "transactions": feed.transactions, "aborted": feed.aborted}))


if __name__ == "__main__":
    main()
