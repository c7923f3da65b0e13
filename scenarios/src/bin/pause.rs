//! pause: the process that holds a pod's namespaces open. It waits for its end, which the runtime sends as SIGKILL.

fn main() {
    loop {
        std::thread::park();
    }
}
