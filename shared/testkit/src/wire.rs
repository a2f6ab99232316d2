//! A wire to a store that can be made to hang: connections stay open, and nothing comes through any more.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Carries connections to a server, as the clients of a stopped process see them: accepted, and never answered.
#[derive(Debug)]
pub struct Wire {
    /// Where it listens: host:port.
    pub address: String,
    hanging: watch::Sender<Hanging>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hanging {
    /// Everything comes through.
    Nothing,
    /// What was connected before, though a connection that is made now works.
    Old,
    /// Nothing comes through.
    Everything,
}

#[allow(clippy::unwrap_used, reason = "for tests")]
impl Wire {
    /// A wire to `server`, host:port.
    pub async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let hanging = watch::Sender::new(Hanging::Nothing);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server.to_owned(), hanging.clone()));
        Self { address, hanging, _tasks: tasks }
    }

    /// A wire to the server of `url`, and the URL by way of it.
    pub async fn of(url: &str) -> (Self, String) {
        let (scheme, rest) = url.split_once("://").unwrap();
        let (place, path) = rest.find(['/', '?']).map_or((rest, ""), |end| rest.split_at(end));
        let server = place.rsplit('@').next().unwrap();
        let user = place.strip_suffix(server).unwrap();
        let wire = Self::to(server).await;
        let by_wire = format!("{scheme}://{user}{}{path}", wire.address);
        (wire, by_wire)
    }

    /// From now on nothing comes through, in either direction.
    pub fn hang(&self) {
        self.hanging.send_replace(Hanging::Everything);
    }

    /// What is connected from now on works; what hangs goes on hanging.
    pub fn replace(&self) {
        self.hanging.send_replace(Hanging::Old);
    }

    /// All that was held up comes through now.
    pub fn go_on(&self) {
        self.hanging.send_replace(Hanging::Nothing);
    }
}

async fn accept(listener: TcpListener, server: String, hanging: watch::Sender<Hanging>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (server, mut hanging) = (server.clone(), hanging.subscribe());
        let is_old_at = if *hanging.borrow() == Hanging::Old { Hanging::Everything } else { Hanging::Old };
        connections.spawn(async move {
            if over(&mut hanging, is_old_at).await.is_none() {
                return;
            }
            if let Ok(server) = TcpStream::connect(server).await {
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::select! {
                    () = carry(from_client, to_server, hanging.clone(), is_old_at) => {}
                    () = carry(from_server, to_client, hanging, is_old_at) => {}
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Waits until it does not hang; none where the wire is gone.
async fn over(hanging: &mut watch::Receiver<Hanging>, is_old_at: Hanging) -> Option<()> {
    let through = |now: &Hanging| *now != Hanging::Everything && *now != is_old_at;
    hanging.wait_for(through).await.ok().map(|_| ())
}

async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut hanging: watch::Receiver<Hanging>,
    is_old_at: Hanging,
) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if over(&mut hanging, is_old_at).await.is_none() || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
