"""The stream processors that other people would take, on the same topic: one thread each, count and mean.

Both parse every record and fold it into tumbling windows of one minute of the message's timestamp, Quix in
RocksDB, Kafka Streams in memory without a changelog. That is less than Inferwatch does: no series, no
quantiles, no detector, no database. Each says how many records it saw and the sum of their latencies, which
is checked.

Quix Streams: QUIX_PYTHON names the interpreter of an environment with quixstreams 3 in it. Kafka Streams:
Maven fetches its jars once into .services/, javac compiles the class below.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import rounds
from tests import services

QUIX = """
import json, sys, time, resource, tempfile
from quixstreams import Application
from quixstreams.dataframe.windows import Count, Mean
bootstrap, topic, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
app = Application(broker_address=bootstrap, consumer_group=f"q{time.time()}", auto_offset_reset="earliest",
                  state_dir=tempfile.mkdtemp(), loglevel="ERROR")
source = app.topic(topic, value_deserializer="json", timestamp_extractor=lambda v, h, t, k: t)
frame = app.dataframe(source)
seen = [0, 0.0, 0.0, 0.0]
def mark(value):
    if not seen[0]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        seen[1:3] = [time.monotonic(), used.ru_utime + used.ru_stime]
    seen[0] += 1
    seen[3] += value["latency_ms"]
    if seen[0] == wanted:
        app.stop()  # `run(count=)` counts what comes out, and a window comes out late
frame = frame.update(mark)
frame = frame.tumbling_window(60_000).agg(n=Count(), latency=Mean("latency_ms")).final()
app.run()
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"records": seen[0], "sum": seen[3], "wall_s": time.monotonic() - seen[1],
                  "cpu_s": used.ru_utime + used.ru_stime - seen[2]}))
"""

STREAMS_VERSION = services.KAFKA_VERSION
STREAMS = services.SERVICES / f"kafka-streams-{STREAMS_VERSION}"
ARTIFACTS = (f"org.apache.kafka:kafka-streams:{STREAMS_VERSION}", "org.rocksdb:rocksdbjni:10.1.3")
STREAMS_CLASS = """
import com.fasterxml.jackson.databind.ObjectMapper;
import com.sun.management.OperatingSystemMXBean;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.common.serialization.*;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.*;
import org.apache.kafka.streams.kstream.*;
import org.apache.kafka.streams.state.*;

public class Peer {
    static long seen = 0, wall = 0, cpu = 0;
    static double sum = 0;

    static byte[] pack(long count, double total) {
        return ByteBuffer.allocate(16).putLong(count).putDouble(total).array();
    }

    public static void main(String[] arguments) throws Exception {
        long wanted = Long.parseLong(arguments[2]);
        var system = (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        var done = new CountDownLatch(1);
        var json = new ObjectMapper();
        var settings = new Properties();
        settings.put("application.id", "streams-" + System.nanoTime());
        settings.put("bootstrap.servers", arguments[0]);
        settings.put("num.stream.threads", 1);
        settings.put("state.dir", arguments[3]);
        settings.put("auto.offset.reset", "earliest");
        settings.put("commit.interval.ms", 1000);
        var builder = new StreamsBuilder();
        WindowBytesStoreSupplier store = Stores.inMemoryWindowStore(
            "windows", Duration.ofDays(1), Duration.ofMinutes(1), false);
        builder.stream(arguments[1], Consumed.with(Serdes.ByteArray(), Serdes.ByteArray()))
            .mapValues(value -> {
                if (seen == 0) { wall = System.nanoTime(); cpu = system.getProcessCpuTime(); }
                try {
                    double latency = json.readTree(value).get("latency_ms").asDouble();
                    sum += latency;
                    return pack(1, latency);
                } catch (java.io.IOException error) {
                    throw new RuntimeException(error);
                }
            })
            .groupByKey(Grouped.with(Serdes.ByteArray(), Serdes.ByteArray()))
            .windowedBy(TimeWindows.ofSizeWithNoGrace(Duration.ofMinutes(1)))
            .aggregate(() -> pack(0, 0.0), (key, value, total) -> {
                ByteBuffer one = ByteBuffer.wrap(value), all = ByteBuffer.wrap(total);
                byte[] next = pack(all.getLong() + one.getLong(), all.getDouble() + one.getDouble());
                if (++seen == wanted) done.countDown();
                return next;
            }, Materialized.<byte[], byte[]>as(store).withKeySerde(Serdes.ByteArray())
                .withValueSerde(Serdes.ByteArray()).withLoggingDisabled());
        var streams = new KafkaStreams(builder.build(), settings);
        streams.start();
        done.await();
        double wallS = (System.nanoTime() - wall) / 1e9, cpuS = (system.getProcessCpuTime() - cpu) / 1e9;
        streams.close(Duration.ofSeconds(10));
        System.out.println("{\\"records\\": " + seen + ", \\"sum\\": " + sum + ", \\"wall_s\\": " + wallS
            + ", \\"cpu_s\\": " + cpuS + "}");
    }
}
"""


def quix(python: str, bootstrap: str, topic: str, records: int) -> dict[str, Any]:
    """Quix Streams in the environment of `python`; CPU and wall from its first record on."""
    return rounds.child([python, "-c", QUIX, bootstrap, topic, str(records)])


@cache
def streams_classpath() -> str:
    """Jars and the compiled class; both are made once. Raises ServiceError without Maven or a JDK."""
    mvn, javac = services.need("mvn", "maven"), services.need("javac", "default-jdk-headless")
    libs = services.kafka_classpath()
    with services.file_lock(services.SERVICES / "streams.lock"):
        if not (STREAMS / "complete").exists():
            STREAMS.mkdir(parents=True, exist_ok=True)
            for artifact in ARTIFACTS:
                goal = ["org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy", "-Dtransitive=false"]
                subprocess.run(
                    [mvn, "-B", "-q", *goal, f"-Dartifact={artifact}", f"-DoutputDirectory={STREAMS}"],
                    check=True, cwd=STREAMS,
                )  # fmt: skip
            (STREAMS / "complete").touch()
        path = os.pathsep.join([str(STREAMS / "*"), str(STREAMS), libs])
        (STREAMS / "Peer.java").write_text(STREAMS_CLASS, encoding="utf-8")
        subprocess.run([javac, "-cp", path, "-d", str(STREAMS), str(STREAMS / "Peer.java")], check=True)
    return path


def kafka_streams(bootstrap: str, topic: str, records: int, folder: str) -> dict[str, Any]:
    """Kafka Streams with one stream thread; CPU (of the whole process) and wall from its first record on."""
    state = Path(folder) / "streams"
    shutil.rmtree(state, ignore_errors=True)
    java = services.need("java", "default-jre-headless")
    return rounds.child(
        [java, "-Xmx512m", "-XX:+UseSerialGC", "-cp", streams_classpath(), "Peer", bootstrap, topic,
         str(records), str(state)]
    )  # fmt: skip


def check(name: str, result: dict[str, Any], latency_ms: Any) -> None:
    """Both saw every record and its value: the sum of the first `records` latencies is theirs."""
    seen = int(result["records"])
    wanted = float(latency_ms[:seen].sum())
    assert abs(result["sum"] - wanted) < 1e-6 * wanted, (name, result, wanted)
