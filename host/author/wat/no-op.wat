;; An interceptor that receives the body and answers that nothing changes.
(module
  (memory (export "memory") 4)
  (global $next (mut i32) (i32.const 1024))

  ;; Bump allocation: everything of a call is given back when the next one ends.
  (func (export "cabi_realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
    (local $at i32)
    (local $end i32)
    (local.set $at
      (i32.and
        (i32.add (global.get $next) (i32.sub (local.get $align) (i32.const 1)))
        (i32.sub (i32.const 0) (local.get $align))))
    (local.set $end (i32.add (local.get $at) (local.get $size)))
    (if (i32.gt_u (local.get $end) (i32.shl (memory.size) (i32.const 16)))
      (then
        (if (i32.eq
              (memory.grow
                (i32.add
                  (i32.shr_u (i32.sub (local.get $end) (i32.shl (memory.size) (i32.const 16))) (i32.const 16))
                  (i32.const 1)))
              (i32.const -1))
          (then unreachable))))
    (global.set $next (local.get $end))
    (local.get $at))

  (func $again (global.set $next (i32.const 1024)))

  ;; ok({ body: true, time: false, identity: false, headers: [] })
  (func (export "flumen:plugin/guest@0.2.0#open") (param i32 i32) (result i32)
    (i64.store (i32.const 0) (i64.const 0x100000000))
    (i64.store (i32.const 8) (i64.const 0))
    (call $again)
    (i32.const 0))

  ;; ok of a difference that is empty: 72 bytes of zero
  (func (export "flumen:plugin/guest@0.2.0#process")
    (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
    (memory.fill (i32.const 0) (i32.const 0) (i32.const 128))
    (call $again)
    (i32.const 0))

  ;; { version: "", summary: "", options: "" }
  (func (export "flumen:plugin/about@0.2.0#describe") (result i32)
    (memory.fill (i32.const 0) (i32.const 0) (i32.const 128))
    (i32.const 0))
)
