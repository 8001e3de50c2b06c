"""The oracle's hands: asks and feeds a Kafka broker through confluent-kafka.

Driven by tests/src/kafka/client.rs; people may use it too:
    PYTHONPATH=target/peers/python python3 tests/kafka/client.py --bootstrap 127.0.0.1:19092 consume TOPIC --output -

A record, read or written, is a line of JSON:
    {"topic", "partition", "offset", "key", "value", "headers": [[name, value], ...],
     "timestamp_ms", "timestamp_type": "create" | "append" | null}
Bytes are a string where they are UTF-8, else {"base64": "..."}; absent bytes are null.
To write, all but "value" may be left out.

Ends with 0, or with 1 and one line `error: CODE: text` on standard error.
"""

import argparse
import base64
import json
import os
import re
import shutil
import sys
import tempfile
import time

from confluent_kafka import (
    OFFSET_BEGINNING, Consumer, ConsumerGroupTopicPartitions, ElectionType, KafkaError, KafkaException, Producer,
    TopicPartition,
)
from confluent_kafka.admin import (
    AclBinding, AclOperation, AclPermissionType, AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource,
    NewPartitions, NewTopic, ResourcePatternType, ResourceType,
)

# Many records per call: a call costs far more than a record.
BATCH = 20_000
# Errors that trying again does not mend.
FATAL = {
    KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM, KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION,
}


class Failure(Exception):
    """What the user is told; a Kafka error has its name in front."""


class Session:
    """Settings of one call, its deadline, and the first error that cannot be mended."""

    def __init__(self, args):
        self.args = args
        self.deadline = time.monotonic() + args.timeout
        self.error = None

    def left(self):
        """Seconds until the deadline; fails behind it."""
        self.check()
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Failure(f"TIMEOUT: not done within {self.args.timeout} s")
        return left

    def check(self):
        if self.error is not None:
            raise KafkaException(self.error)

    def on_error(self, error):
        # With TLS 1.3 a refused certificate is no error of the handshake: the alert comes behind it.
        is_refused = error.code() == KafkaError._TRANSPORT and "SSL alert" in error.str()
        if self.error is None and (error.code() in FATAL or error.fatal() or is_refused):
            self.error = error

    def settings(self, **more):
        result = {"bootstrap.servers": self.args.bootstrap, "error_cb": self.on_error,
                  "log_level": 0, "topic.metadata.refresh.interval.ms": 1000}
        result.update({name.replace("_", "."): value for name, value in more.items()})
        for item in self.args.property:
            name, _, value = item.partition("=")
            result[name] = value
        return result

    def connected(self, client):
        """Waits until a broker answers, or says why none will."""
        while True:
            left = self.left()
            try:
                client.list_topics(topic="", timeout=min(1.0, left))
                return client
            except KafkaException as error:
                if error.args[0].code() not in (KafkaError._TRANSPORT, KafkaError._TIMED_OUT):
                    raise
            # The reason comes as an event.
            client.poll(0.02)

    def admin(self):
        return self.connected(AdminClient(self.settings()))

    def topic(self, client, name):
        """Metadata of a topic, or None."""
        found = client.list_topics(topic=name, timeout=self.left()).topics.get(name)
        if found is None or found.error is not None and found.error.code() in (
                KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            return None
        if found.error is not None and found.error.code() != KafkaError.LEADER_NOT_AVAILABLE:
            raise KafkaException(found.error)
        return found

    def until_topic(self, client, name, is_as_wanted):
        """The broker learns of a change some moments after the controller has made it."""
        while not is_as_wanted(self.topic(client, name)):
            self.left()
            time.sleep(0.01)

    def results(self, futures):
        return {key: future.result(timeout=self.left()) for key, future in futures.items()}


def encode(data):
    if data is None or isinstance(data, str):
        return data
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def decode(data):
    if data is None:
        return None
    return base64.b64decode(data["base64"]) if isinstance(data, dict) else data.encode("utf-8")


def has_leaders(partitions):
    return lambda topic: (topic is not None and len(topic.partitions) == partitions
                          and all(part.leader >= 0 for part in topic.partitions.values()))


def create_topic(session, args):
    admin = session.admin()
    config = dict(item.split("=", 1) for item in args.config)
    place = {"num_partitions": args.partitions}
    if args.replicas is not None:
        replicas = [[int(node) for node in nodes.split(",")] for nodes in args.replicas.split(":")]
        place = {"num_partitions": len(replicas), "replica_assignment": replicas}
    session.results(admin.create_topics([NewTopic(args.topic, config=config, **place)]))
    session.until_topic(admin, args.topic, has_leaders(place["num_partitions"]))


def delete_topic(session, args):
    admin = session.admin()
    session.results(admin.delete_topics([args.topic]))
    session.until_topic(admin, args.topic, lambda topic: topic is None)


def add_partitions(session, args):
    admin = session.admin()
    session.results(admin.create_partitions([NewPartitions(args.topic, args.total)]))
    session.until_topic(admin, args.topic, has_leaders(args.total))


def alter_config(session, args):
    admin = session.admin()
    entries = [ConfigEntry(*item.split("=", 1), incremental_operation=AlterConfigOpType.SET) for item in args.config]
    kind = ConfigResource.Type.TOPIC
    session.results(admin.incremental_alter_configs([ConfigResource(kind, args.topic, incremental_configs=entries)]))


def leaders(session, args):
    """Per partition its leader, and who is in sync."""
    found = session.topic(session.admin(), args.topic)
    if found is None:
        raise Failure(f"UNKNOWN_TOPIC_OR_PART: there is no topic {args.topic}")
    print(json.dumps([{"partition": number, "leader": part.leader, "in_sync": sorted(part.isrs)}
                      for number, part in sorted(found.partitions.items())]))


def elect_leaders(session, args):
    """The first replica of each partition leads again; waits until all of them are in sync."""
    admin = session.admin()
    session.until_topic(admin, args.topic, lambda topic: all(
        set(part.isrs) == set(part.replicas) for part in topic.partitions.values()))
    partitions = [TopicPartition(args.topic, number) for number in session.topic(admin, args.topic).partitions]
    asked = admin.elect_leaders(ElectionType.PREFERRED, partitions)
    for partition, error in asked.result(timeout=session.left()).items():
        if error is not None and error.code() != KafkaError.ELECTION_NOT_NEEDED:
            raise KafkaException(error)
    session.until_topic(admin, args.topic, lambda topic: all(
        part.leader == part.replicas[0] for part in topic.partitions.values()))


def acl(session, args):
    admin = session.admin()
    binding = AclBinding(ResourceType[args.kind.upper()], args.name, ResourcePatternType.LITERAL,
                         f"User:{args.user}", "*", AclOperation[args.operation.upper()],
                         AclPermissionType[args.permission.upper()])
    session.results(admin.create_acls([binding]))


def delete_records(session, args):
    admin = session.admin()
    session.results(admin.delete_records([TopicPartition(args.topic, args.partition, args.before)]))


def consumer(session, args, **more):
    settings = session.settings(group_id=f"oracle-{os.getpid()}", enable_auto_commit=False,
                                auto_offset_reset="error", isolation_level=args.isolation, **more)
    return session.connected(Consumer(settings))


def offsets(session, args):
    reader = consumer(session, args)
    topic = session.topic(reader, args.topic)
    if topic is None:
        raise Failure(f"UNKNOWN_TOPIC_OR_PART: there is no topic {args.topic}")
    answer = []
    for number in sorted(topic.partitions):
        begin, end = reader.get_watermark_offsets(TopicPartition(args.topic, number), timeout=session.left())
        answer.append({"partition": number, "begin": begin, "end": end})
    reader.close()
    print(json.dumps(answer))


def group_offsets(session, args):
    admin = session.admin()
    asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(args.group)])
    found = session.results(asked)[args.group].topic_partitions
    print(json.dumps([{"topic": part.topic, "partition": part.partition, "offset": part.offset,
                       "metadata": part.metadata} for part in found if part.offset >= 0]))


def members(session, args):
    admin = session.admin()
    found = session.results(admin.describe_consumer_groups([args.group]))[args.group]
    print(json.dumps({"state": found.state.name, "members": [
        {"id": member.member_id, "client_id": member.client_id, "instance": member.group_instance_id,
         "partitions": [[part.topic, part.partition] for part in member.assignment.topic_partitions]}
        for member in found.members]}))


def as_json(messages):
    kinds = {1: "create", 2: "append"}
    lines = []
    for message in messages:
        kind, time_ms = message.timestamp()
        headers = [[name, encode(value)] for name, value in message.headers() or []]
        lines.append(json.dumps({
            "topic": message.topic(), "partition": message.partition(), "offset": message.offset(),
            "key": encode(message.key()), "value": encode(message.value()), "headers": headers,
            "timestamp_ms": time_ms if kind in kinds else None, "timestamp_type": kinds.get(kind),
        }).encode())
    return lines


def as_values(messages):
    return [message.value() or b"" for message in messages]


def consume(session, args):
    """Reads all partitions side by side into a file each, and puts these behind each other."""
    reader = consumer(session, args, enable_partition_eof=True, queued_max_messages_kbytes=131072,
                      fetch_message_max_bytes=8 << 20, fetch_wait_max_ms=50,
                      # The default of a second is spent whenever the queue was full.
                      fetch_queue_backoff_ms=2)
    topic = session.topic(reader, args.topic)
    if topic is None:
        raise Failure(f"UNKNOWN_TOPIC_OR_PART: there is no topic {args.topic}")
    numbers = sorted(topic.partitions)
    reader.assign([TopicPartition(args.topic, number, OFFSET_BEGINNING) for number in numbers])
    to_lines = as_values if args.values else as_json
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(args.output))) as scratch:
        parts = {number: open(os.path.join(scratch, str(number)), "w+b", buffering=1 << 20) for number in numbers}
        total = drain(session, args, reader, parts, to_lines)
        reader.close()
        with open(1, "wb", closefd=False) if args.output == "-" else open(args.output, "wb") as output:
            for number in numbers:
                parts[number].seek(0)
                shutil.copyfileobj(parts[number], output, 1 << 20)
                parts[number].close()
    print(json.dumps({"records": total}), file=sys.stderr if args.output == "-" else sys.stdout)


def drain(session, args, reader, parts, to_lines):
    """Until the end of every partition; or, with a count, until it is reached or the time is over."""
    total, open_parts = 0, set(parts)
    while total < args.count if args.count is not None else open_parts:
        session.check()
        left = session.deadline - time.monotonic()
        if left <= 0:
            if args.count is not None:
                return total
            raise Failure(f"TIMEOUT: {total} records in {args.timeout} s, and partitions {sorted(open_parts)} go on")
        groups = {number: [] for number in parts}
        for message in reader.consume(BATCH, timeout=min(left, 0.05)):
            error = message.error()
            if error is None:
                groups[message.partition()].append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                open_parts.discard(message.partition())
            elif not error.retriable():
                raise KafkaException(error)
        for number, messages in groups.items():
            if messages:
                total += len(messages)
                parts[number].write(b"\n".join(to_lines(messages)) + b"\n")
    return total


def collect(session, args):
    """Appends what is new since the last call to DIR/TOPIC/pPARTITION/KEY.log, values alone, a line each.

    Where to go on stands in DIR.offsets.json, written last: a call that failed changes nothing that counts,
    since files are first cut back to the lengths in it.
    """
    state_path = args.output.rstrip("/") + ".offsets.json"
    os.makedirs(args.output, exist_ok=True)
    state = {"next": {}, "bytes": {}, "records": 0}
    if os.path.exists(state_path):
        with open(state_path) as text:
            state = json.load(text)
    reader = consumer(session, args, enable_partition_eof=True, fetch_message_max_bytes=8 << 20, fetch_wait_max_ms=50,
                      fetch_queue_backoff_ms=2)
    positions = []
    for name in args.topics:
        topic = session.topic(reader, name)
        if topic is None:
            raise Failure(f"UNKNOWN_TOPIC_OR_PART: there is no topic {name}")
        for number in sorted(topic.partitions):
            offset = state["next"].get(f"{name}/p{number}", OFFSET_BEGINNING)
            positions.append(TopicPartition(name, number, offset))
    reader.assign(positions)
    open_parts = {(part.topic, part.partition) for part in positions}
    while open_parts:
        session.left()
        new = {}
        for message in reader.consume(BATCH, timeout=0.05):
            error = message.error()
            if error is None:
                place = f"{message.topic()}/p{message.partition()}"
                key = "none" if message.key() is None else re.sub("[^A-Za-z0-9]", "_", message.key().decode())
                new.setdefault(f"{place}/{key}.log", []).append(message.value() or b"")
                state["next"][place] = message.offset() + 1
                state["records"] += 1
            elif error.code() == KafkaError._PARTITION_EOF:
                open_parts.discard((message.topic(), message.partition()))
            elif not error.retriable():
                raise KafkaException(error)
        for name, values in new.items():
            append(os.path.join(args.output, name), state["bytes"], name, values)
    reader.close()
    with open(state_path + ".new", "w") as text:
        json.dump(state, text)
    os.replace(state_path + ".new", state_path)
    print(json.dumps({"records": state["records"]}))


def append(path, lengths, name, values):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "ab") as output:
        output.truncate(lengths.get(name, 0))
        output.seek(0, os.SEEK_END)
        output.write(b"\n".join(values) + b"\n")
        lengths[name] = output.tell()


def to_write(args):
    with open(args.input, "rb") as lines:
        for line in lines:
            line = line.rstrip(b"\n")
            if args.lines:
                yield {"value": line}
                continue
            record = json.loads(line)
            message = {"value": decode(record.get("value")), "key": decode(record.get("key"))}
            if record.get("headers"):
                message["headers"] = [(name, decode(value)) for name, value in record["headers"]]
            if record.get("partition") is not None:
                message["partition"] = record["partition"]
            if record.get("timestamp_ms") is not None:
                message["timestamp"] = record["timestamp_ms"]
            yield message


def write(session, args, writer):
    failed = []

    def delivered(error, _message):
        if error is not None and not failed:
            failed.append(error)

    fixed = {} if args.partition is None else {"partition": args.partition}
    for message in to_write(args):
        while True:
            try:
                writer.produce(args.topic, on_delivery=delivered, **{**fixed, **message})
                break
            except BufferError:
                session.left()
                writer.poll(0.05)
        if failed:
            break
    while writer.flush(min(0.2, session.left())) and not failed:
        pass
    if failed:
        raise KafkaException(failed[0])


def producer(session, **more):
    return session.connected(Producer(session.settings(
        enable_idempotence=True, linger_ms=5, queue_buffering_max_messages=500_000, **more)))


def produce(session, args):
    write(session, args, producer(session))


def produce_txn(session, args):
    more = {} if args.txn_timeout_ms is None else {"transaction_timeout_ms": args.txn_timeout_ms}
    writer = producer(session, transactional_id=args.transactional_id, **more)
    writer.init_transactions(session.left())
    writer.begin_transaction()
    write(session, args, writer)
    if args.end == "commit":
        writer.commit_transaction(session.left())
    elif args.end == "abort":
        writer.abort_transaction(session.left())
    else:
        # A clean end of the client would abort: this one dies with its transaction open.
        os._exit(0)


def hold_offsets(session, args):
    admin = session.admin()
    asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(args.group)])
    found = session.results(asked)[args.group].topic_partitions
    held = [TopicPartition(part.topic, part.partition, part.offset) for part in found if part.offset >= 0]
    reader = session.connected(Consumer(session.settings(group_id=args.group)))
    member = reader.consumer_group_metadata()
    writer = producer(session, transactional_id=args.transactional_id, transaction_timeout_ms=args.txn_timeout_ms)
    writer.init_transactions(session.left())
    writer.begin_transaction()
    writer.send_offsets_to_transaction(held, member, session.left())
    print(len(held), flush=True)
    os._exit(0)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--property", action="append", default=[], metavar="NAME=VALUE", help="of librdkafka")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(run, *names, **options):
        result = commands.add_parser(run.__name__.replace("_", "-"), **options)
        result.set_defaults(run=run)
        for name in names:
            result.add_argument(name)
        return result

    create = command(create_topic, "topic")
    create.add_argument("--partitions", type=int, default=1)
    create.add_argument("--replicas", metavar="1,2:2,1", help="brokers of each partition, the preferred leader first")
    create.add_argument("--config", action="append", default=[], metavar="NAME=VALUE")
    command(delete_topic, "topic")
    command(add_partitions, "topic").add_argument("total", type=int)
    command(alter_config, "topic").add_argument("config", nargs="+", metavar="NAME=VALUE")
    command(leaders, "topic")
    command(elect_leaders, "topic")
    rule = command(acl)
    rule.add_argument("permission", choices=["allow", "deny"])
    for name in ("user", "operation", "kind", "name"):
        rule.add_argument(name)
    delete = command(delete_records, "topic")
    delete.add_argument("partition", type=int)
    delete.add_argument("before", type=int)
    command(group_offsets, "group")
    command(members, "group")
    for run in (offsets, consume):
        read = command(run, "topic")
        read.add_argument("--isolation", choices=["read_committed", "read_uncommitted"], default="read_committed")
    read.add_argument("--output", required=True, metavar="FILE", help="in order of partition and offset; -: stdout")
    read.add_argument("--values", action="store_true", help="the values alone, a line each")
    read.add_argument("--count", type=int, help="stop at so many records or at the timeout, not at the end")
    gather = command(collect)
    gather.add_argument("output", metavar="DIR")
    gather.add_argument("topics", nargs="+", metavar="TOPIC")
    gather.set_defaults(isolation="read_committed")
    for run in (produce, produce_txn):
        feed = command(run, "topic")
        feed.add_argument("input", help="a file of lines of JSON")
        feed.add_argument("--lines", action="store_true", help="each line is a value, as it is")
        feed.add_argument("--partition", type=int)
    feed.add_argument("--transactional-id", required=True)
    feed.add_argument("--end", choices=["commit", "abort", "open"], required=True)
    feed.add_argument("--txn-timeout-ms", type=int)
    hold = command(hold_offsets, "group")
    hold.add_argument("--transactional-id", required=True)
    hold.add_argument("--txn-timeout-ms", type=int, required=True)
    return parser.parse_args()


def main():
    args = arguments()
    session = Session(args)
    try:
        try:
            args.run(session, args)
        except KafkaException:
            # The reason, if one is known, rather than what it led to.
            session.check()
            raise
    except KafkaException as error:
        reason = error.args[0]
        sys.exit(f"error: {reason.name()}: {reason.str()}")
    except Failure as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
