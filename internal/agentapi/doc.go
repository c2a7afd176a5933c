// Package agentapi is the language between the host and the agent in a guest:
// frames on a stream, and the messages they carry.
//
// A stream serves one operation. The host opens it and sends a [Request]; the
// agent answers with a reply of the operation or an [Error]. Every frame has a
// length cap; an unknown kind ends the stream, never the VM. The guest is
// hostile to the host: whatever comes from it is only data, and text is made
// harmless before a person sees it.
package agentapi
