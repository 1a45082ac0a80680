//! Renaming: replacing, refusing to replace, exchanging.
//!
//! Invariants:
//! - A rename is one transaction over all directories and files it touches, under their guards.
//! - A directory is moved to another parent only under the volume's rename lock, so no two hosts
//!   can together make a circle.

use lunfs_format::{Descriptor, RENAME_LOCK};

use super::{Dir, LINKS_MAX, fewer_links, names_nothing};
use crate::allocate::Purpose;
use crate::error::{Error, Kind, Result};
use crate::locks::{Wish, WishKind};
use crate::types::{FileId, FileKind, RenameMode};
use crate::volume::Volume;

/// Deepest directory that a move into is checked for.
const DEPTH_MAX: usize = 4096;

struct Rename<'a> {
    dir: FileId,
    name: &'a [u8],
    from: FileId,
    to_dir: FileId,
    to_name: &'a [u8],
    to: Option<FileId>,
    mode: RenameMode,
}

impl Rename<'_> {
    /// May a file of this kind take the target's place?
    fn judge(&self, kind: FileKind, to: Option<&Descriptor>) -> Result<()> {
        let Some(to) = to else { return Ok(()) };
        let to_dir = to.kind == lunfs_format::FileKind::Directory;
        match (self.mode, kind == FileKind::Directory, to_dir) {
            (RenameMode::NoReplace | RenameMode::Exchange, _, _) => Ok(()),
            (RenameMode::Replace, true, false) => Err(Kind::NotDirectory.into()),
            (RenameMode::Replace, false, true) => Err(Kind::IsDirectory.into()),
            (RenameMode::Replace, true, true) if to.size > 0 => Err(Kind::NotEmpty.into()),
            (RenameMode::Replace, _, _) => Ok(()),
        }
    }
}

impl Volume {
    /// Gives a file another name, which may be in another directory.
    pub async fn rename(
        &self,
        dir: FileId,
        name: &[u8],
        to_dir: FileId,
        to_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        self.writable()?;
        Self::checked_length(name)?;
        Self::checked_name(to_name)?;
        self.with_space(async || {
            loop {
                let from = self.reading(dir, async |v| self.find(v, name).await).await?;
                let from = from.ok_or(Kind::NotFound)?;
                let to = self.reading(to_dir, async |v| self.find(v, to_name).await).await?;
                let step = Rename { dir, name, from, to_dir, to_name, to, mode };
                if self.rename_step(&step).await? {
                    return Ok(());
                }
            }
        })
        .await
    }

    /// One try; `false`: the names changed meanwhile.
    async fn rename_step(&self, step: &Rename<'_>) -> Result<bool> {
        let is_dir = self.is_directory(step.from).await?
            || (step.mode == RenameMode::Exchange
                && match step.to {
                    Some(to) => self.is_directory(to).await?,
                    None => false,
                });
        let moves_dir = is_dir && step.dir != step.to_dir;
        let _alone = if moves_dir {
            let wish = Wish { addr: RENAME_LOCK, birth: 0, kind: WishKind::System };
            let guard = self.hold(wish).await?;
            self.refuse_circle(step.from, step.to_dir).await?;
            if let (RenameMode::Exchange, Some(to)) = (step.mode, step.to) {
                self.refuse_circle(to, step.dir).await?;
            }
            Some(guard)
        } else {
            None
        };
        let mut wishes: Vec<Wish> = vec![step.dir.into(), step.to_dir.into(), step.from.into()];
        wishes.extend(step.to.map(Wish::from));
        let guards = match self.hold_all(&wishes).await {
            Err(e) if e.kind == Kind::Stale => {
                // Names that still stand for what is gone are damage, not a race.
                let same = self.still(step.dir, step.name, Some(step.from)).await?
                    && self.still(step.to_dir, step.to_name, step.to).await?;
                return if same { Err(self.which_names_nothing(step).await) } else { Ok(false) };
            }
            other => other?,
        };
        self.write_back_all(&guards).await?;
        let unchanged = self.find_held(step.dir, step.name).await? == Some(step.from)
            && self.find_held(step.to_dir, step.to_name).await? == step.to;
        if !unchanged {
            return Ok(false);
        }
        if let Some(to) = step.to.filter(|_| step.mode == RenameMode::Replace) {
            self.used_by_nobody_else(&self.current(to)).await?;
        }
        self.rename_held(step).await?;
        Ok(true)
    }

    async fn which_names_nothing(&self, step: &Rename<'_>) -> Error {
        match (self.getattr(step.from).await, step.to) {
            (Ok(_), Some(to)) => names_nothing(step.to_dir, to),
            _ => names_nothing(step.dir, step.from),
        }
    }

    async fn is_directory(&self, id: FileId) -> Result<bool> {
        let kind = self.reading(id, async |view| Ok(view.body.kind)).await;
        match kind {
            Ok(kind) => Ok(kind == lunfs_format::FileKind::Directory),
            Err(e) if e.kind == Kind::Stale => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The caller has the rename lock: no directory changes its parent meanwhile.
    async fn refuse_circle(&self, moved: FileId, into: FileId) -> Result<()> {
        let mut at = into;
        for _ in 0..DEPTH_MAX {
            if at == moved {
                return Err(Error::new(Kind::Invalid, "a directory cannot move into itself"));
            }
            if at == self.root() {
                return Ok(());
            }
            at = self.getattr(at).await?.parent;
        }
        Err(Error::new(Kind::TooLong, "directories are nested too deep"))
    }

    async fn rename_held(&self, step: &Rename<'_>) -> Result<()> {
        if step.to.is_some() && step.mode == RenameMode::NoReplace {
            return Err(Kind::Exists.into());
        }
        if step.to == Some(step.from) {
            return Ok(());
        }
        let mut from_body = self.current(step.from);
        let kind = FileKind::of(from_body.kind).ok_or(Kind::Stale)?;
        let to_body = step.to.map(|to| self.current(to));
        step.judge(kind, to_body.as_ref())?;
        let mut tx = self.begin(24, Purpose::New).await?;
        let same = step.dir == step.to_dir;
        let mut source = self.opened(step.dir)?;
        let mut target = if same { None } else { Some(self.opened(step.to_dir)?) };
        let gains = |into: &Dir, moved: FileKind, left: Option<FileKind>| {
            let is_more = moved == FileKind::Directory && left != Some(FileKind::Directory);
            is_more && into.body.nlink >= LINKS_MAX
        };
        if let Some(target) = &target {
            let left = to_body.as_ref().and_then(|to| FileKind::of(to.kind));
            let back = left.filter(|_| step.mode == RenameMode::Exchange);
            if gains(target, kind, left) || back.is_some_and(|b| gains(&source, b, Some(kind))) {
                return Err(Kind::TooManyLinks.into());
            }
        }
        let mut last = None;
        match (step.mode, step.to, to_body) {
            (RenameMode::Exchange, Some(to), Some(mut body)) => {
                let to_kind = FileKind::of(body.kind).ok_or(Kind::Stale)?;
                self.insert(&mut tx, &mut source, step.name, to, to_kind).await?;
                moved(&mut body, step.dir, same);
                count_moved(&mut source, target.as_mut(), to_kind, kind)?;
                body.ctime = self.wall();
                tx.put_descriptor(to.addr, body);
            }
            (RenameMode::Exchange, _, _) => return Err(Kind::NotFound.into()),
            (_, to, body) => {
                self.remove(&mut tx, &mut source, step.name).await?;
                if kind == FileKind::Directory
                    && let Some(target) = target.as_mut()
                {
                    fewer_links(&mut source)?;
                    target.body.nlink += 1;
                }
                if let (Some(to), Some(mut body)) = (to, body) {
                    if kind == FileKind::Directory {
                        fewer_links(target.as_mut().unwrap_or(&mut source))?;
                    }
                    self.drop_link(&mut tx, to, &mut body)?;
                    last = (body.nlink == 0).then_some(to);
                    tx.put_descriptor(to.addr, body);
                }
            }
        }
        let into = target.as_mut().unwrap_or(&mut source);
        self.insert(&mut tx, into, step.to_name, step.from, kind).await?;
        moved(&mut from_body, step.to_dir, same);
        from_body.ctime = self.wall();
        tx.put_descriptor(step.from.addr, from_body);
        tx.put_descriptor(step.dir.addr, source.into_body());
        if let Some(target) = target {
            tx.put_descriptor(step.to_dir.addr, target.into_body());
        }
        tx.finish().await?;
        if let Some(id) = last {
            self.gone_if(true, id);
        }
        Ok(())
    }
}

/// A directory that changed its parent says so.
fn moved(body: &mut Descriptor, parent: FileId, same: bool) {
    if !same && body.kind == lunfs_format::FileKind::Directory {
        (body.parent, body.parent_birth) = (parent.addr, parent.birth);
    }
}

/// Links of two directories between which two files change places.
fn count_moved(
    source: &mut Dir,
    target: Option<&mut Dir>,
    into: FileKind,
    out: FileKind,
) -> Result<()> {
    let Some(target) = target else { return Ok(()) };
    if into == FileKind::Directory {
        source.body.nlink += 1;
        fewer_links(target)?;
    }
    if out == FileKind::Directory {
        fewer_links(source)?;
        target.body.nlink += 1;
    }
    Ok(())
}
