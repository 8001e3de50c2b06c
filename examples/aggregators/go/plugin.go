// Counts events by the value of a header, in windows of event time.
//
// In the state: under the end of a window (so that keys are in the order in which windows close) and the value, the count.
// A window closes when an event behind its end comes, or when the clock is a whole window behind its end. What comes later
// still is counted anew: the counts of a window and a value add up to its events.
package main

import (
	"encoding/binary"
	"errors"
	"math"
	"strconv"
	"unicode/utf8"

	"flumen"
	"flumen/state"
)

const options = `{
  "type": "object", "additionalProperties": false, "required": ["by"],
  "properties": {
    "by": {"type": "string", "minLength": 1, "description": "The header whose values are counted."},
    "window_s": {"type": "integer", "minimum": 1, "maximum": 86400, "default": 60, "description": "Seconds of a window."}
  }
}`

const (
	// Windows that are looked at in one go.
	scanMax = 1_000
	// Events that are made in one go: what is left follows with the next batch or tick. A batch has at most 65,536.
	eventsMax = 32_768
	// A key of the state has at most 1,024 bytes.
	valueBytesMax = 1_000
)

var errForeign = errors.New("what it remembers is not what it wrote")

type plugin struct {
	By      string `json:"by"`
	WindowS uint32 `json:"window_s"`
}

func (p *plugin) Open(config flumen.Config) (flumen.Reads, error) {
	p.WindowS = 60
	if err := config.Parse(p); err != nil {
		return flumen.Reads{}, err
	}
	if p.By == "" {
		return flumen.Reads{}, errors.New("config: the key `by` is missing; add it")
	}
	return flumen.Reads{Time: true, Headers: []string{p.By}}, nil
}

func (p *plugin) window() int64 { return int64(p.WindowS) * 1_000_000_000 }

// TickMs is ten times in a window, and at least every ten seconds.
func (p *plugin) TickMs() uint32 { return min(p.WindowS*100, 10_000) }

func (p *plugin) Process(batch *flumen.Batch, events *flumen.Events) (*flumen.Answer, error) {
	counts := map[string]uint64{}
	latest := int64(math.MinInt64)
	for event := range batch.Events {
		value, is := event.Header(p.By)
		if !is {
			value = "-"
		}
		counts[key(p.end(event.Time()), value)]++
		latest = max(latest, event.Time())
	}
	if err := add(counts); err != nil {
		return nil, err
	}
	// The counts go on in place of the events.
	var answer flumen.Answer
	answer.KeepOnly()
	return &answer, p.close(latest, events)
}

func (p *plugin) Tick(now int64, events *flumen.Events) error {
	if now < math.MinInt64+p.window() {
		return nil
	}
	return p.close(now-p.window(), events)
}

// end is the end of the window that a time is in.
func (p *plugin) end(time int64) int64 {
	number := time / p.window()
	if time%p.window() < 0 {
		number--
	}
	if number+1 > math.MaxInt64/p.window() {
		return math.MaxInt64
	}
	return (number + 1) * p.window()
}

// close emits the counts of all windows that end at a time or before it.
func (p *plugin) close(time int64, events *flumen.Events) error {
	for {
		found, err := state.Scan(nil, nil, scanMax)
		if err != nil {
			return err
		}
		var closed [][]byte
		for _, entry := range found {
			if len(entry.Key) < 8 || len(entry.Value) != 8 {
				return errForeign
			}
			end := int64(binary.BigEndian.Uint64(entry.Key) ^ 1<<63)
			if end > time {
				break
			}
			events.Add(end, strconv.AppendUint(nil, binary.LittleEndian.Uint64(entry.Value), 10))
			events.Header(p.By, string(entry.Key[8:]))
			closed = append(closed, entry.Key)
		}
		if len(closed) > 0 {
			if err := state.Remove(closed); err != nil {
				return err
			}
		}
		if len(closed) < scanMax || events.Len() >= eventsMax {
			return nil
		}
	}
}

// add adds to what was counted before.
func add(counts map[string]uint64) error {
	var keys, sums [][]byte
	for key := range counts {
		keys = append(keys, []byte(key))
	}
	before, err := state.Get(keys)
	if err != nil {
		return err
	}
	for row, key := range keys {
		sum := counts[string(key)]
		if len(before[row]) == 8 {
			sum += binary.LittleEndian.Uint64(before[row])
		}
		sums = append(sums, binary.LittleEndian.AppendUint64(nil, sum))
	}
	return state.Put(keys, sums, 0)
}

// key is the end of a window, in an order that its bytes have, and the value.
func key(end int64, value string) string {
	length := min(len(value), valueBytesMax)
	for length > 0 && length < len(value) && !utf8.RuneStart(value[length]) {
		length--
	}
	return string(append(binary.BigEndian.AppendUint64(nil, uint64(end)^1<<63), value[:length]...))
}

func init() {
	flumen.RegisterAggregator(flumen.About{
		Version: "0.1.0",
		Summary: "Counts events by the value of a header, in windows of event time.",
		Options: options,
	}, &plugin{})
}

func main() {}
