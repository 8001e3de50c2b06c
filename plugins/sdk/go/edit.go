package flumen

import (
	"encoding/binary"
	"errors"
)

// Edit is what happens to the event at hand; an event that nothing is said about goes on unchanged.
type Edit struct {
	batch   *Batch
	answer  Answer
	row     int
	settled bool
	emitted bool
	isPlain bool
	changed bool
	body    []byte
	hasBody bool
	time    int64
	hasTime bool
	headers []change
	columns []*Builder
	misuse  error
}

type change struct {
	isSet, isRemoved bool
	value            string
}

func each(p Interceptor, batch *Batch) (*Answer, error) {
	headers := len(batch.Headers)
	edit := Edit{batch: batch, isPlain: true, headers: make([]change, headers), columns: make([]*Builder, headers)}
	edit.answer.rows = make([]byte, 0, batch.Rows*4)
	for row := 0; row < batch.Rows; row++ {
		edit.row, edit.settled, edit.emitted = row, false, false
		if err := p.Intercept(Event{batch, row}, &edit); err != nil {
			return nil, err
		}
		if !edit.settled {
			edit.Emit()
		}
		edit.forget()
	}
	for _, column := range edit.columns {
		if column != nil {
			edit.answer.headers = append(edit.answer.headers, column)
		}
	}
	edit.answer.isChosen = !edit.isPlain
	return &edit.answer, edit.misuse
}

// SetBody changes the body. The bytes must not change until the next event.
func (e *Edit) SetBody(body []byte) {
	if !e.batch.reads.Body {
		e.misused("the body is changed but not read: set Body in Reads")
		return
	}
	e.body, e.hasBody, e.changed = body, true, true
}

// SetTime changes the event time: nanoseconds since the Unix epoch, UTC.
func (e *Edit) SetTime(time int64) {
	if !e.batch.reads.Time {
		e.misused("the time is changed but not read: set Time in Reads")
		return
	}
	e.time, e.hasTime, e.changed = time, true, true
}

// SetHeader sets a header.
func (e *Edit) SetHeader(name, value string) { e.change(name, change{isSet: true, value: value}) }

// RemoveHeader removes a header.
func (e *Edit) RemoveHeader(name string) { e.change(name, change{isSet: true, isRemoved: true}) }

func (e *Edit) change(name string, to change) {
	for i := range e.batch.Headers {
		if e.batch.Headers[i].Name == name {
			e.headers[i], e.changed = to, true
			return
		}
	}
	e.misused("header `" + name + "` is changed but not read: add it to Headers in Reads")
}

// Drop says that the event goes no further. It is no error: it is counted as dropped.
func (e *Edit) Drop() {
	e.forget()
	e.isPlain, e.settled = false, true
}

// Reject says that the event cannot be worked with; the pipeline says where such events go.
func (e *Edit) Reject(reason string) {
	if e.emitted {
		e.misused("an event is rejected after a part of it was emitted")
		return
	}
	e.forget()
	if !e.settled {
		e.answer.Reject(e.row, reason)
	}
	e.settled = true
}

// Emit sends the event on as it is now, and starts again from what came in: to make several events of one.
func (e *Edit) Emit() {
	if e.hasBody && e.answer.body == nil {
		e.answer.Body(e.batch.Rows, len(e.batch.Body.Data))
		e.fill(func(row int) { e.answer.body.Push(e.batch.Body.Get(row)) })
	}
	if e.answer.body != nil {
		if e.hasBody {
			e.answer.body.Push(e.body)
		} else {
			e.answer.body.Push(e.batch.Body.Get(e.row))
		}
	}
	if e.hasTime && e.answer.time == nil {
		e.answer.time = make([]byte, 0, e.batch.Rows*8)
		e.fill(func(row int) { e.answer.PushTime(e.batch.Time.Get(row)) })
	}
	if e.answer.time != nil {
		if !e.hasTime {
			e.time = e.batch.Time.Get(e.row)
		}
		e.answer.PushTime(e.time)
	}
	for i := range e.headers {
		e.emitHeader(i)
	}
	if e.emitted {
		e.isPlain = false
	}
	e.answer.rows = binary.LittleEndian.AppendUint32(e.answer.rows, uint32(e.row))
	e.settled, e.emitted = true, true
	e.forget()
}

func (e *Edit) emitHeader(i int) {
	input, changed := &e.batch.Headers[i], &e.headers[i]
	old := func(row int) {
		value, isPresent := input.Value(row)
		e.columns[i].push(value, isPresent)
	}
	if changed.isSet && e.columns[i] == nil {
		e.columns[i] = newBuilder(input.Name, e.batch.Rows, len(input.Data)+16*len(changed.value))
		e.fill(old)
	}
	switch {
	case e.columns[i] == nil:
	case changed.isRemoved:
		e.columns[i].PushAbsent()
	case changed.isSet:
		e.columns[i].PushString(changed.value)
	default:
		old(e.row)
	}
}

// fill calls write for the input row of every output row so far.
func (e *Edit) fill(write func(row int)) {
	for at := 0; at < len(e.answer.rows); at += 4 {
		write(int(binary.LittleEndian.Uint32(e.answer.rows[at:])))
	}
}

func (e *Edit) forget() {
	if e.changed {
		e.body, e.hasBody, e.hasTime, e.changed = nil, false, false, false
		clear(e.headers)
	}
}

func (e *Edit) misused(how string) {
	if e.misuse == nil {
		e.misuse = errors.New("a mistake in the plugin: " + how)
	}
}
