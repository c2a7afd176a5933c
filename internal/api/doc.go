// Package api is the language of the owner daemon: requests, states, events
// and errors, as JSON over HTTP/1.1 on a unix socket.
//
// Its types are plain values without behaviour beyond their own consistency.
// Errors cross process boundaries as [Error]; long requests answer with a
// stream of [Event], one JSON object a line.
//
// The routes, all below /v1 (REF is a name, an id or an unambiguous prefix of
// an id, at least four digits long):
//
//	GET    /hello                         Hello
//	GET    /machines                      []Machine
//	POST   /machines                      CreateMachine -> stream of Event
//	GET    /machines/REF                  Machine
//	PATCH  /machines/REF                  SetMachine -> Machine
//	DELETE /machines/REF                  -> Machine, when nothing is left of it
//	POST   /machines/REF/start            StartMachine -> stream of Event
//	POST   /machines/REF/stop             StopMachine -> Machine
//	POST   /machines/REF/kill             KillMachine -> Machine
//	POST   /machines/REF/restart          StartMachine -> stream of Event
//	GET    /machines/REF/console          the console of the last boot, raw bytes, also of a stopped VM
//	GET    /images, /kernels              []Image, []Kernel
//	GET    /images/NAME, /kernels/NAME    Image, Kernel
//	DELETE /images/NAME, /kernels/NAME    -> Image, Kernel; refused while VMs use it
//	POST   /images/NAME/pull              PullRequest -> stream of Event (kernels too)
//	PUT    /images/NAME/build/TICKET      tar -> 204 (kernels too); its outcome is told by the pull stream
//	PUT    /images/NAME                   tar -> stream of Event: image import
//	GET    /census                        Census
//	POST   /reconcile                     -> Census, after one pass
//	POST   /shutdown                      -> 204; VMs go on
package api
